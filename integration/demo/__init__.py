"""The demo, `make demo`. It is also a Django app, which has the task that is measured."""
