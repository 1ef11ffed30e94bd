#!/usr/bin/env bash
exec python -m cedm_ray search search_spaces/digits.yaml --study "${STUDY:-$HOME/runs/digits}"
