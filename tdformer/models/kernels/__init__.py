"""Fused kernels: BatchNorm and LIF neurons of all time steps as one kernel each way. The plain path is in neurons.py.

The plain path writes the results of a dozen operations per time step to memory. A fused kernel keeps them in registers. For the backward
pass it saves only the synapse's output, from which it computes the potentials again; that is half of what the plain path keeps. Currents
and potentials are float32 inside (float64 for float64 input), so that at bf16 the current is not rounded between BatchNorm and neurons.
"""
