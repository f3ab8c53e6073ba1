"""What a service that deletes people's rows needs: a durable ledger, its journal and checkpoints, and durable weights."""
