#!/bin/bash
# For compose.yaml: PostgreSQL's image runs it as the superuser when its volume is empty. Makes the service's role, with the
# password in the service's URL, and the tables, which that role can use and nothing else: postgres.sql.
set -e

password=$(</run/secrets/database_url)
password=${password#*://persist:}
password=${password%@*}
# In a URL, special characters are percent-encoded.
password=${password//\\/\\\\}
printf -v PASSWORD %b "${password//%/\\x}"
export PASSWORD # not an argument, which others could see

psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password PASSWORD
CREATE ROLE persist LOGIN PASSWORD :'password';
\i /usr/share/persistd/postgres.sql
SQL
