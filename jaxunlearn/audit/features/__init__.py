"""What features still know of a forget set: similarities, probes, restoration, and one word for all of them."""
