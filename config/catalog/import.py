#!/usr/bin/env python3
"""Makes models.csv, the built-in price catalogue, from a price map.

    python3 import.py PRICES.csv > models.csv

PRICES.csv has one model a row, prices in USD per million tokens, with the columns
    provider model mode input_usd_per_mtok cached_input cache_write output max_input max_output
    tools json_schema vision reasoning prompt_caching deprecation tiers_usd_per_mtok
as taken from the price map of the PyPI package named in SOURCE. To renew the catalogue: get newer figures, change
SOURCE and DATE, look through SELECTION (a model in it that is missing, retired or without a price is an error, so
nothing goes stale silently), run this, and read the diff of models.csv against the providers' own price pages.

What it does: strips the map's own prefixes from model names, so that a name is what the provider calls it; treats a
price of 0 as unknown; keeps the tiers "above N thousand tokens" of ordinary, batch, flex and priority requests, and the
price of caches that live an hour. The map that this was written for says nothing of the batch, flex and priority prices
of shorter requests, nor of audio: they are left out.
"""

import csv
import re
import sys
from decimal import Decimal

SOURCE = "litellm 1.109.1 price map (MIT)"
DATE = "2026-11-21"

# Our provider kind -> (the price map's provider, what it puts before model names, whether the provider also serves
# text completions for its chat models, models).
SELECTION = {
    "openai": ("openai", "", False, """
        gpt-6.1-sol gpt-6.1-terra gpt-6-sol gpt-6-luna gpt-6-astra gpt-5.6 gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna
        gpt-5.5 gpt-5.4 gpt-5.4-mini gpt-5.4-nano gpt-5.2 gpt-5.1 gpt-5 gpt-5-mini gpt-5-nano chat-latest
        gpt-4.1 gpt-4.1-mini gpt-4o gpt-4o-2024-11-20 gpt-4o-2024-08-06 gpt-4o-mini gpt-4o-mini-2024-07-18 o3
        text-embedding-3-large text-embedding-3-small text-embedding-ada-002"""),
    "azure": ("azure", "azure/", False, """
        gpt-6.1-sol gpt-6.1-terra gpt-6-sol gpt-6-luna gpt-6-astra gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna
        gpt-5.5 gpt-5.4 gpt-5.4-mini gpt-5.4-nano gpt-5.2 gpt-5.1 gpt-5 gpt-5-mini gpt-5-nano
        gpt-4.1 gpt-4.1-mini gpt-4.1-nano gpt-4o gpt-4o-mini text-embedding-3-large text-embedding-3-small"""),
    "anthropic": ("anthropic", "", False, """
        claude-fable-5-1 claude-fable-5 claude-opus-5-5 claude-opus-5 claude-opus-4-8 claude-sonnet-5-5
        claude-sonnet-5 claude-sonnet-4-6 claude-haiku-5-5 claude-haiku-4-5"""),
    "gemini": ("gemini", "gemini/", False, """
        gemini-4-argon gemini-3.8-flash gemini-3.7-flash gemini-3.6-flash gemini-3.5-flash gemini-3.5-flash-lite
        gemini-3.1-pro-preview gemini-3.1-flash-lite gemini-3-flash-preview gemini-2.5-pro gemini-2.5-flash
        gemini-2.5-flash-lite gemini-pro-latest gemini-flash-latest gemini-flash-lite-latest
        gemini-embedding-2 gemini-embedding-001"""),
    "groq": ("groq", "groq/", False, """
        openai/gpt-oss-120b openai/gpt-oss-20b openai/gpt-oss-safeguard-20b qwen/qwen3.8-27b"""),
    "cerebras": ("cerebras", "cerebras/", False, "gpt-oss-120b gemma-4-31b qwen-3.8-27b"),
    "deepseek": ("deepseek", "deepseek/", False, "deepseek-flash deepseek-v4-flash deepseek-v4-pro"),
    "mistral": ("mistral", "mistral/", False, """
        mistral-large-4 mistral-large-latest mistral-large-2512 mistral-medium-latest mistral-medium-3-5
        mistral-small-latest mistral-small-2603 magistral-medium-latest magistral-small-latest
        ministral-14b-latest ministral-8b-latest ministral-3b-latest codestral-latest codestral-2508
        devstral-latest devstral-small-latest pixtral-large-latest zai-glm-5-3 zai-glm-5-3-flash
        mistral-embed codestral-embed"""),
    "xai": ("xai", "xai/", False, """
        grok-4.7 grok-4.6 grok-4.5 grok-4.3 grok-4.20 grok-4.20-reasoning grok-4.20-non-reasoning grok-code-fast
        grok-build-0.1"""),
    "perplexity": ("perplexity", "perplexity/", False, """
        sonar sonar-pro sonar-reasoning-pro sonar-deep-research pplx-embed-v1-4b pplx-embed-v1-0.6b"""),
    "together": ("together_ai", "together_ai/", True, """
        moonshotai/Kimi-K3 zai-org/GLM-5.3 zai-org/GLM-5.3-Flash zai-org/GLM-5.2 zai-org/GLM-4.6
        deepseek-ai/DeepSeek-V4-Pro-0813 deepseek-ai/DeepSeek-V4.1-Flash deepseek-ai/DeepSeek-V4.1-Flash-1017
        MiniMaxAI/MiniMax-M3.1-Flash Qwen/Qwen3.7-Max Qwen/Qwen3.7-Plus Qwen/Qwen3.8-Flash Qwen/Qwen3.5-9B
        meta-models/Muse-Spark-Open-816B-A42B meta-models/Muse-Glimmer-30B
        nvidia/NVIDIA-Nemotron-3.5-Super-VL openai/gpt-oss-120b BAAI/bge-base-en-v1.5"""),
    "fireworks": ("fireworks_ai", "fireworks_ai/", True, """
        accounts/fireworks/models/kimi-k3 accounts/fireworks/models/glm-5p3 accounts/fireworks/models/glm-5p3-flash
        accounts/fireworks/models/deepseek-v4p1-flash accounts/fireworks/models/deepseek-v4p1-flash-1017
        accounts/fireworks/models/minimax-m3p1-flash accounts/fireworks/models/minimax-m3
        accounts/fireworks/models/muse-spark-open accounts/fireworks/models/gpt-oss-20b"""),
}

COLUMNS = ["kind", "model", "input", "cached_input", "cache_write", "output", "above", "context", "max_output",
           "abilities", "source", "date", "cache_write_1h", "tiers"]


def main(path):
    with open(path, newline="") as file:
        facts = {(row["provider"], row["model"]): row for row in csv.DictReader(file)}
    out = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    out.writeheader()
    for kind, (provider, prefix, completions, names) in SELECTION.items():
        for name in names.split():
            found = facts.get((provider, prefix + name)) or facts.get((provider, name))
            if found is None:
                sys.exit(f"{kind}/{name}: not in {path}")
            if found["deprecation"] and found["deprecation"] <= DATE:
                sys.exit(f"{kind}/{name}: retired on {found['deprecation']}")
            out.writerow(catalog_row(kind, name, found, completions))


def catalog_row(kind, name, found, completions):
    embeds = found["mode"] == "embedding"
    flags = [flag for flag in ("tools", "json_schema", "vision", "reasoning") if found[flag] == "1"]
    abilities = ["embeddings"] if embeds else ["chat"] + ["completion"] * completions + flags
    row = {
        "kind": kind, "model": name, "input": price(found["input_usd_per_mtok"]),
        "cached_input": price(found["cached_input"]), "cache_write": price(found["cache_write"]),
        "output": price(found["output"]), "above": tiers(found["tiers_usd_per_mtok"]),
        "context": found["max_input"], "max_output": "" if embeds else found["max_output"],
        "abilities": " ".join(abilities), "source": SOURCE, "date": DATE,
        "cache_write_1h": hour(found["tiers_usd_per_mtok"]), "tiers": tariffs(found["tiers_usd_per_mtok"]),
    }
    if not row["input"] or not (row["output"] or embeds):
        sys.exit(f"{kind}/{name}: no price")
    return row


def price(text):
    """A price as written, or nothing for the 0 that stands for "unknown"."""
    return text if text and Decimal(text) > 0 else ""


def hour(text):
    """The price of writing to a cache that lives an hour."""
    found = [item.split("=")[1] for item in text.split(";") if item.startswith("cache_creation_input_token_cost_above_1hr=")]
    return price(found[0]) if found else ""


def tariffs(text):
    """`tariff:` and a tier, for each tariff that has tiers with a price of input and output."""
    names = {"flex": "flex", "priority": "priority", "batches": "batch"}
    rows = [(name, tier) for suffix, name in names.items() for tier in tiers(text, "_" + suffix, False).split()]
    return " ".join(f"{name}:{tier}" for name, tier in rows)


def tiers(text, tariff="", strict=True):
    """`input_tokens:input:cached_input:cache_write:output[:cache_write_1h]`, one for each threshold."""
    columns = {"input": 0, "cache_read_input": 1, "cache_creation_input": 2, "output": 3}
    found, hours = {}, {}
    for item in filter(None, text.split(";")):
        key, value = item.split("=")
        if match := re.fullmatch(r"(\w+?)(?:_cost_per_token|_token_cost)_above_(\d+)k_tokens" + tariff, key):
            found.setdefault(int(match[2]) * 1000, [""] * 4)[columns[match[1]]] = price(value)
        if match := re.fullmatch(r"cache_creation_input_token_cost_above_1hr_above_(\d+)k_tokens" + tariff, key):
            hours[int(match[1]) * 1000] = price(value)
    for threshold, prices in list(found.items()):
        if not prices[0] or not prices[3]:
            if strict:
                sys.exit(f"a tier above {threshold} lacks a price: {text}")
            del found[threshold]
    rows = [[str(at), *prices, *([hours[at]] if at in hours else [])] for at, prices in sorted(found.items())]
    return " ".join(map(":".join, rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
