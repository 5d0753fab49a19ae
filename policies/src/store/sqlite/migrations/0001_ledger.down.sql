DROP TABLE ledger;
DROP TABLE migrations;
