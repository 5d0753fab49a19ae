-- The double entry, derived from the rows: `nano` nano-dollars of `agent` move from account `credit` to account `debit`.
-- A lease moves them from available to leased; its end moves them on to spent, and the rest back.
CREATE VIEW postings (seq, agent, debit, credit, nano) AS
WITH attempts AS (
    SELECT seq, agent, kind, outcome, leased_nano, cost_nano,
           LAG(leased_nano, 1, 0) OVER (PARTITION BY COALESCE(intent, seq) ORDER BY seq) AS held
    FROM ledger WHERE kind <> 'change' AND kind <> 'checkpoint' AND kind <> 'summary'
)
SELECT seq, agent, 'leased', 'available', leased_nano - held FROM attempts WHERE outcome IS NULL AND leased_nano <> held
UNION ALL
SELECT seq, agent, 'spent', 'leased', MIN(cost_nano, held) FROM attempts WHERE outcome IS NOT NULL AND MIN(cost_nano, held) > 0
UNION ALL
SELECT seq, agent, 'available', 'leased', held - cost_nano FROM attempts WHERE outcome IS NOT NULL AND cost_nano < held
UNION ALL
SELECT seq, agent, 'spent', 'available', cost_nano - held FROM attempts WHERE outcome IS NOT NULL AND cost_nano > held
UNION ALL
SELECT seq, agent, 'spent', 'available', cost_nano FROM ledger WHERE kind = 'summary' AND cost_nano > 0;
