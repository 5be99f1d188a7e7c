#!/bin/bash
# Starts mysqld the way the official image does, as far as the tests need it:
#
#   MYSQL_ROOT_PASSWORD   password of root, from any host; empty or unset: no password
#   MYSQL_DATABASE        a database to create
#   MYSQL_USER            a user to create, from any host, with all rights on MYSQL_DATABASE
#   MYSQL_PASSWORD        password of that user
#   arguments             go to mysqld; a first argument that is no option and not "mysqld" is run instead
set -euo pipefail

data=/var/lib/mysql

if [[ $# -eq 0 || $1 == -* ]]; then
    set -- mysqld "$@"
fi
if [[ $1 != mysqld ]]; then
    exec "$@"
fi
shift

# Some Docker daemons run without a limit of open files, and mysqld sizes tables by that limit.
if [[ $(ulimit -n) == unlimited || $(ulimit -n) -gt 65536 ]]; then
    ulimit -n 65536
fi

# The mark is there as long as the first initialisation runs. Found at a start, it says that the container was
# killed in the middle of it: what lies there is nobody's data, and mysqld would refuse to initialise over it.
mark=$data/.initialising
if [[ -e $mark ]]; then
    find "$data" -mindepth 1 -not -path "$mark" -not -name lost+found -delete
fi
# mysqld itself overlooks dot files and lost+found when it asks whether a data directory is empty.
if [[ -z $(find "$data" -mindepth 1 -maxdepth 1 -not -name '.*' -not -name lost+found) ]]; then
    touch "$mark"
    # The arguments too: some, such as --lower-case-table-names, must be the same now and ever after.
    mysqld "$@" --initialize-insecure
    rm "$mark"
fi

sql_string() { # quoted for SQL
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\'\'}"
}

# The accounts are asked for at every start, by statements that change nothing when all is there. So there is no
# second, temporary server (the official image has one, and says "ready for connections" once too often), and a
# container killed between the initialisation and this point still gets its accounts at the next start.
#
# root@localhost goes because an account for that very host would win over '%' inside of the container.
init_file=/var/run/mysqld/accounts.sql
umask_before=$(umask)
umask 077
{
    echo "SET SESSION sql_log_bin = 0;"
    echo "CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY $(sql_string "${MYSQL_ROOT_PASSWORD:-}");"
    echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
    echo "DROP USER IF EXISTS 'root'@'localhost';"
    if [[ -n ${MYSQL_DATABASE:-} ]]; then
        echo "CREATE DATABASE IF NOT EXISTS \`${MYSQL_DATABASE//\`/\`\`}\`;"
    fi
    if [[ -n ${MYSQL_USER:-} ]]; then
        user="$(sql_string "$MYSQL_USER")@'%'"
        echo "CREATE USER IF NOT EXISTS $user IDENTIFIED BY $(sql_string "${MYSQL_PASSWORD:-}");"
        if [[ -n ${MYSQL_DATABASE:-} ]]; then
            echo "GRANT ALL ON \`${MYSQL_DATABASE//\`/\`\`}\`.* TO $user;"
        fi
    fi
} >"$init_file"
umask "$umask_before"

# exec: mysqld is process 1, gets Docker's SIGTERM itself, and shuts down cleanly.
exec mysqld --init-file="$init_file" "$@"
