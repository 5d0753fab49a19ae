//! Gateways whose ledgers are in PostgreSQL.
