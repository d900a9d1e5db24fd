"""What a plan is made of: described devices, collectives, tables and plots."""
