"""`labelgen doctor`: whether this machine replays the pixels that were labelled; if not, why."""

PATHS = ("pillow", "torch", "ffcv")  # that crops take; see labelgen.doctor.paths
