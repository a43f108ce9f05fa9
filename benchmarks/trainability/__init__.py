"""Does it help? Small real tasks, trained from every initialization by one protocol."""
