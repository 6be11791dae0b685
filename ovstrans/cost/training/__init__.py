"""What training costs: `step` counts one, layer by layer, three ways; `run` a whole run and what runs beside it."""
