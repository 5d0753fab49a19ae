-- Who pays (team, run, task), administrative changes, sums of compacted rows, and the tokens and prices of audio, of
-- caches that live an hour, and of service tiers. What a row says nothing about is null, and a null column after `hash`
-- is no part of the hash: so the rows of version 1 keep theirs.
DROP TRIGGER ledger_keeps_rows;
DROP TRIGGER ledger_keeps_values;
DROP INDEX ledger_spend;
ALTER TABLE ledger RENAME TO ledger_1;

CREATE TABLE ledger (
    seq                 INTEGER PRIMARY KEY,
    at_us               INTEGER NOT NULL,
    kind                TEXT    NOT NULL CHECK (kind = 'intent' OR kind = 'extension' OR kind = 'settlement' OR kind = 'release' OR kind = 'unknown'
                                             OR kind = 'change' OR kind = 'summary' OR kind = 'checkpoint'),
    intent              INTEGER CHECK ((intent IS NULL) = (kind = 'intent' OR kind = 'change' OR kind = 'summary' OR kind = 'checkpoint')),
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
    estimated           INTEGER NOT NULL CHECK (estimated = 0 OR estimated = 1),
    leased_nano         INTEGER NOT NULL CHECK (leased_nano >= 0),
    input_pico          INTEGER NOT NULL,
    cached_input_pico   INTEGER NOT NULL,
    cache_write_pico    INTEGER NOT NULL,
    output_pico         INTEGER NOT NULL,
    catalog             TEXT    NOT NULL,
    cost_nano           INTEGER NOT NULL CHECK (cost_nano >= 0),
    overrun_nano        INTEGER NOT NULL CHECK (overrun_nano >= 0),
    outcome             TEXT    CHECK ((outcome IS NULL) = (kind = 'intent' OR kind = 'extension' OR kind = 'change' OR kind = 'checkpoint')),
    ttft_ms             INTEGER,
    duration_ms         INTEGER,
    oldest_open         INTEGER NOT NULL,
    prev_hash           BLOB    NOT NULL,
    hash                BLOB    NOT NULL,
    team                TEXT,
    run                 TEXT,
    task                TEXT,
    note                TEXT    CHECK (note IS NULL OR kind = 'change' OR kind = 'checkpoint'),
    attempts            INTEGER CHECK ((attempts IS NULL) = (kind <> 'summary')),
    unknowns            INTEGER CHECK ((unknowns IS NULL) = (kind <> 'summary')),
    releases            INTEGER CHECK ((releases IS NULL) = (kind <> 'summary')),
    audio_input_tokens    INTEGER CHECK (audio_input_tokens > 0),
    audio_output_tokens   INTEGER CHECK (audio_output_tokens > 0),
    cache_write_1h_tokens INTEGER CHECK (cache_write_1h_tokens > 0),
    tier                  TEXT,
    audio_input_pico      INTEGER,
    audio_output_pico     INTEGER,
    cache_write_1h_pico   INTEGER
) STRICT;

INSERT INTO ledger SELECT *, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM ledger_1;
DROP TABLE ledger_1;

CREATE INDEX ledger_spend ON ledger (admitted_us, agent, cost_nano) WHERE outcome IS NOT NULL;
-- Where the proof begins once rows were compacted.
CREATE INDEX ledger_checkpoints ON ledger (seq) WHERE kind = 'checkpoint';

-- Rows up to here may be deleted: a checkpoint in the chain stands for them. Set by the transaction that writes it.
CREATE TABLE compacted (one INTEGER PRIMARY KEY CHECK (one = 1), through INTEGER NOT NULL) STRICT;
INSERT INTO compacted VALUES (1, 0);

CREATE TRIGGER ledger_keeps_rows BEFORE DELETE ON ledger
WHEN OLD.seq > (SELECT through FROM compacted)
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
CREATE TRIGGER ledger_keeps_values BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

-- What is not in the configuration file: agents, keys, budgets, runs, pauses that were made while the gateway ran. Each
-- is a JSON text, written together with the `change` row that says who did it.
CREATE TABLE state (
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    body       TEXT    NOT NULL,
    changed_us INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
