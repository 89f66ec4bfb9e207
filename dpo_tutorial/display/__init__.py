"""Display: figures, sliders, the live monitor and the claims."""
