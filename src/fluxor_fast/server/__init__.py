"""What runs in a worker: protocol, admission, batch, worker."""
