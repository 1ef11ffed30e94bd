#!/usr/bin/env bash
# scikit-learn's digits: nothing is downloaded, and two CPU cores are enough.
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/digits.sh
# Environment, by --runtime-env-json '{"env_vars": {"STUDY": "/shared/runs/digits"}}': STUDY, the folder of the study,
# on storage that all machines see (default ~/runs/digits of the head).
# Cost: about 8 minutes on 2 CPU cores once Python and Ray are up (as `make quickstart`, measured).
# Expect: C_max near 150, C_V among the larger candidates, FD[pixels] several percent below the unconditional model's.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search search_spaces/digits.yaml --study "${STUDY:-$HOME/runs/digits}"
