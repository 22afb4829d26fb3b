"""What a run needs before it starts: parameters, FLOPs, memory, time, energy and price, and whether it fits."""
