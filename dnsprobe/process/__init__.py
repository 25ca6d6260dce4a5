"""What a process is: its control group, its container, its ancestors, and what ``/proc`` says of it."""
