-- Back to what version 1 knows. It cannot hold rows that say more, and a chain has no gaps: so the first of them and all
-- after it go, and all rows where a compaction has left its checkpoint. What is kept beside the ledger goes too.
DROP TRIGGER ledger_keeps_rows;
DROP TRIGGER ledger_keeps_values;
DROP INDEX ledger_spend;
DROP INDEX ledger_checkpoints;
ALTER TABLE ledger RENAME TO ledger_2;

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

INSERT INTO ledger
SELECT seq, at_us, kind, intent, admitted_us, request_id, attempt, agent, operation, alias, backend, input_tokens, cached_input_tokens,
       cache_write_tokens, output_tokens, reasoning_tokens, estimated, leased_nano, input_pico, cached_input_pico, cache_write_pico,
       output_pico, catalog, cost_nano, overrun_nano, outcome, ttft_ms, duration_ms, oldest_open, prev_hash, hash
FROM ledger_2
WHERE (SELECT through FROM compacted) = 0
  AND seq < COALESCE((
      SELECT MIN(seq) FROM ledger_2
      WHERE kind = 'change' OR kind = 'summary' OR kind = 'checkpoint'
         OR COALESCE(team, run, task, note, tier) IS NOT NULL
         OR COALESCE(audio_input_tokens, audio_output_tokens, cache_write_1h_tokens) IS NOT NULL
         OR COALESCE(audio_input_pico, audio_output_pico, cache_write_1h_pico) IS NOT NULL
  ), 9223372036854775807);
DROP TABLE ledger_2;
DROP TABLE compacted;
DROP TABLE state;

CREATE INDEX ledger_spend ON ledger (admitted_us, agent, cost_nano) WHERE outcome IS NOT NULL;

CREATE TRIGGER ledger_keeps_rows BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
CREATE TRIGGER ledger_keeps_values BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
