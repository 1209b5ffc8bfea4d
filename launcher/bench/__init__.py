"""What `launcher bench` measures: this machine, and clusters that are not here by simulation."""
