//! The errors of MySQL and MariaDB.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

use crate::store::ErrorClass;
use crate::store::dialect::{BIGINT, GRANT, MIGRATE};

/// `ER_DUP_ENTRY`: a key is in the table already.
pub(super) const DUPLICATE: u16 = 1062;

/// `ER_AUTOINC_READ_FAILED`, and MariaDB's `HA_ERR_AUTOINC_ERANGE`.
const NO_NUMBER: [u16; 2] = [1467, 167];

/// Whether no number is left for the primary key. MySQL then gives the last number again.
pub(super) fn has_no_number(error: &MySqlDatabaseError) -> bool {
    match error.number() {
        DUPLICATE => error.message().trim_end_matches('\'').ends_with("PRIMARY"),
        number => NO_NUMBER.contains(&number),
    }
}

/// By number: <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>,
/// <https://mariadb.com/kb/en/mariadb-error-codes/>.
pub(super) fn classify(error: &dyn DatabaseError) -> ErrorClass {
    let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() else {
        return ErrorClass::Outage;
    };
    match error.number() {
        // A lock was not granted in time; a deadlock; a row changed since it was read.
        1205 | 1213 | 1020 => ErrorClass::Conflict,
        _ if has_no_number(error) => ErrorClass::Setup,
        // Errors in the data: duplicates, invalid values, values that are too long or out of
        // range, invalid texts or times, constraints, errors raised by triggers, and packets that
        // are too large.
        DUPLICATE
        | 1153
        | 1264
        | 1265
        | 1292
        | 1300
        | 1366
        | 1406
        | 1411
        | 1451
        | 1452
        | 1525
        | 1644
        | 3140..=3158
        | 3819
        | 3854
        | 4025
        | 4037..=4042 => ErrorClass::Poison,
        // Passwords, databases, missing or forbidden tables and columns, and a required column that
        // was added after the catalog was read.
        1044 | 1045 | 1048 | 1049 | 1054 | 1064 | 1142 | 1143 | 1146 | 1227 | 1364 | 1698 => {
            ErrorClass::Setup
        }
        // Everything else is a problem of the server: connections, resources, shutdown, read-only
        // mode, time-outs. It may last long, but the rows are not at fault.
        _ => ErrorClass::Outage,
    }
}

/// How the user can fix an error, if the user can.
pub(super) fn advice(error: &dyn DatabaseError) -> Option<&'static str> {
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(match error.number() {
        1045 | 1698 => {
            "check the user and the password in the database URL, and the client's certificate \
             in ssl-cert and ssl-key where the account asks for one"
        }
        1044 | 1142 | 1143 | 1227 => GRANT,
        1049 => "make it, or correct its name in the database URL",
        1054 | 1146 => MIGRATE,
        1290 | 1792 | 1836 => "write the URL of the primary server, or let the database be written",
        1021 | 1114 => "make room on the disk of the database",
        1040 | 1203 => "raise the server's max_connections, or lower --lanes",
        _ if has_no_number(error) => BIGINT,
        _ => return None,
    })
}
