#!/usr/bin/env bash
set -euo pipefail
exec python -m cedm_ray search "${SPACE:-search_spaces/new_dataset.yaml}" \
  --images "${IMAGES:-$HOME/data/images}" --study "${STUDY:-$HOME/runs/new_dataset}"
