"""The only folder that imports Ray.

Ray reads its environment when it is first imported, so it is set here, before any file of this folder can import it.
What the user has set stays.
"""

import gc
import os

ENVIRONMENT = {
    # Without authentication anyone who reaches the ports can run code (CVE-2023-48022).
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A cluster that we start listens on loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A fit has no distance to report, and Tune would call that an error.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C ends the command at once: what was acknowledged is on disk, and Tune's own state is not needed.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune would otherwise create trials one at a time and leave free slots idle in between.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_WARN_THRESHOLD_S": "10",
    # Tasks stay in the folder they were started in: all paths that they are given are absolute.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Importing torch and Tune makes a million objects, none of them garbage, which Python looks at again for every 700 new
# ones: a sixth of the seconds that a process takes to start.
gc.set_threshold(10_000)

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
