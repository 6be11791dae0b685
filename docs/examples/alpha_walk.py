# %% [markdown]
# # A walk through alpha
#
# How well is a layer trained? The eigenvalues of its weight matrix tell. This walk computes alpha of one layer by hand
# and compares it with `ovstrans.analyze`.

# %%
import numpy as np

import ovstrans

clip = ovstrans.load_clip()  # the bundled RN-mini
analysis = ovstrans.analyze(clip)
print(analysis)

# %% [markdown]
# ## Eigenvalues
#
# A convolution with a kernel of 3x3 is nine matrices, one for each position of the kernel. Their squared singular
# values are pooled. Convolutions are scaled by 0.5, as published.

# %%
name = "layer4.1.conv2"
weight = clip.visual.layer4[1].conv2.weight.detach().double().numpy()  # [O, I, 3, 3]
matrices = weight.transpose(2, 3, 0, 1).reshape(-1, *weight.shape[:2])
eigenvalues = np.sort(0.5 * np.linalg.svd(matrices, compute_uv=False).ravel() ** 2)
eigenvalues = eigenvalues[eigenvalues > 1e-5]
print(f"{name}: {len(eigenvalues)} eigenvalues from {eigenvalues[0]:.2g} to {eigenvalues[-1]:.2g}")

# %% [markdown]
# ## The power law
#
# For every possible start of the tail: the exponent by maximum likelihood, and the largest distance between the tail
# and the fitted law. The start with the smallest distance wins.

# %%
best = (np.inf, np.nan, np.nan)
for start in range(len(eigenvalues) - 1):
    tail = eigenvalues[start:]
    alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
    fitted = 1 - (tail / tail[0]) ** (1 - alpha)
    distance = np.abs(fitted - np.arange(len(tail)) / len(tail)).max()
    best = min(best, (distance, alpha, tail[0]))
distance, alpha, xmin = best
print(f"by hand: alpha {alpha:.6f}, xmin {xmin:.4g}, D {distance:.4f}")

# %%
layer = next(layer for layer in analysis.layers if layer.name == name)
print(f"analyze: alpha {layer.alpha:.6f}, xmin {layer.xmin:.4g}, D {layer.D:.4f}")
assert np.isclose(alpha, layer.alpha) and np.isclose(xmin, layer.xmin)

# %% [markdown]
# ## The freeze plan
#
# Layers with an alpha below the median are well trained: they are frozen.

# %%
plan = analysis.plan()
print(f"{len(plan.frozen)} layers frozen, alpha below {plan.threshold:.3f}")
print(", ".join(plan.frozen[:6]), "...")
