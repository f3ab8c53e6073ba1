"""Generated pages of the site: methods, tasks, status codes, reference, copies of the root's documents."""
