#!/usr/bin/env bash
# The extension in POSTGRES_DB, and a role for bridges. BRIDGE_PASSWORD is that role's.
set -euo pipefail

psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" -v password="${BRIDGE_PASSWORD:?the password of the role bridge}" <<'SQL'
create extension ext_registry;
create role bridge login password :'password';
select ext_grant('bridge', 'bridge');
SQL
