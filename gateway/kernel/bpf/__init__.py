"""The CO-RE loader and the cgroup programs' user side."""
