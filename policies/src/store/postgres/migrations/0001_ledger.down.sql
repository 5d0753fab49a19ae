DROP TABLE ledger;
DROP FUNCTION ledger_is_append_only();
DROP TABLE gateways;
DROP TABLE state;
DROP TABLE ledger_migrations;
