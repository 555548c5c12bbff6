"""BatchNorm and LIF neurons of all time steps as one kernel each way, beside the plain path of neurons.py.

What the plain path writes to memory between its dozen operations per time step stays in registers here, and kept for the backward
pass is only what the synapse gave, from which the potentials are computed again: half of what the plain path keeps. Currents and
potentials are float32 inside (float64 for float64), so that at bf16 the current is not rounded between BatchNorm and neurons.
"""
