"""What a long run must survive: kills, full disks, damaged files, other processes."""
