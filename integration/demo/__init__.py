"""What `make demo` runs. As a Django app of the shop it also brings the task that is measured."""
