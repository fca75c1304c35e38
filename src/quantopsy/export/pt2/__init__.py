"""Programs of ``torch.export`` (``.pt2`` files) that need no quantopsy: the simulation, and PT2E's form of it."""
