"""What people hand in: requests of any form, and the rows of their own files."""
