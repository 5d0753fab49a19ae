-- The ledger: one row for each thing that happens to an attempt. Columns and their meaning: src/ledger/row.rs.
-- (Checks are written without IN: SQLite builds a table for its list at every insertion.)
-- Times are microseconds since 1970, amounts nano-dollars, rates pico-dollars per token.
CREATE TABLE ledger (
    seq                 INTEGER PRIMARY KEY,
    at_us               INTEGER NOT NULL,
    kind                TEXT    NOT NULL CHECK (kind = 'intent' OR kind = 'extension' OR kind = 'settlement' OR kind = 'release' OR kind = 'unknown'),
    intent              INTEGER CHECK ((intent IS NULL) = (kind = 'intent')),
    admitted_us         INTEGER NOT NULL,
    request_id          TEXT    NOT NULL,
    attempt             INTEGER NOT NULL,
    agent               TEXT    NOT NULL,
    operation           TEXT    NOT NULL,
    alias               TEXT    NOT NULL,
    backend             TEXT    NOT NULL,
    input_tokens        INTEGER NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens INTEGER NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens  INTEGER NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens       INTEGER NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens    INTEGER NOT NULL CHECK (reasoning_tokens >= 0),
    estimated           INTEGER NOT NULL CHECK (estimated IN (0, 1)),
    leased_nano         INTEGER NOT NULL CHECK (leased_nano >= 0),
    input_pico          INTEGER NOT NULL,
    cached_input_pico   INTEGER NOT NULL,
    cache_write_pico    INTEGER NOT NULL,
    output_pico         INTEGER NOT NULL,
    catalog             TEXT    NOT NULL,
    cost_nano           INTEGER NOT NULL CHECK (cost_nano >= 0),
    overrun_nano        INTEGER NOT NULL CHECK (overrun_nano >= 0),
    outcome             TEXT    CHECK ((outcome IS NULL) = (kind = 'intent' OR kind = 'extension')),
    ttft_ms             INTEGER,
    duration_ms         INTEGER,
    oldest_open         INTEGER NOT NULL,
    prev_hash           BLOB    NOT NULL,
    hash                BLOB    NOT NULL
) STRICT;

-- Counters at a start, and spend by time, are read from here. Rows come in the order of time, so it grows at its end.
CREATE INDEX ledger_spend ON ledger (admitted_us, agent, cost_nano) WHERE outcome IS NOT NULL;

CREATE TRIGGER ledger_keeps_rows BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
CREATE TRIGGER ledger_keeps_values BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
