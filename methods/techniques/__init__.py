"""What methods build from: range searches, calibration, scaling, learning and distillation."""
