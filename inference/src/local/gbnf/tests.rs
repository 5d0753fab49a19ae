//! Grammars in llama.cpp's notation, by the texts they take.

use super::*;
use crate::local::guide::Guides;
use crate::local::scripted::{IM_END, ScriptedTokenizer};
use std::sync::Arc;

/// Whether a grammar takes this text: every byte is a token.
fn takes(grammar: &str, text: &str) -> bool {
    let (root, rules) = rewrite(grammar).unwrap();
    let guide = Guides::new(Arc::new(ScriptedTokenizer)).compile(&format!("start: {root}\n{rules}")).unwrap();
    let mut follower = guide.start();
    for byte in text.bytes() {
        if !follower.allows(byte.into()) {
            return false;
        }
        follower.accept(byte.into()).unwrap();
    }
    follower.allows(IM_END)
}

#[test]
fn grammars_mean_what_llama_cpp_takes_them_for() {
    let arithmetic = "# sums\nroot ::= (expr \"=\" ws num \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= num | \"(\" ws expr \")\" ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*\n";
    let lines = "root ::= line{2,3}\nline ::= \"- \" [^\\r\\n]+ \"\\n\"";
    let greedy = "root ::= list\nlist ::= (\"a\" | \"ab\") \"bc\" | \"(\" list \")\"";
    let table: [(&str, &[&str], &[&str]); 7] = [
        (arithmetic, &["1+2=3\n", "(1 +2)*3= 9\n\n", "((7))=7\n"], &["1+=2\n", "1=1", "(1=1\n"]),
        (lines, &["- a\n- b\n", "- ü\n- b\n- c\n"], &["- a\n", "a\n- b\n", "- a\n- b\n- c\n- d\n"]),
        (greedy, &["abc", "abbc", "((abc))"], &["ac", "(abc"]),
        ("root ::= \"\\x41\\u00e9\\U0001F600\\\"\" .", &["Aé😀\"x", "Aé😀\"\n"], &["Aé😀\""]),
        ("root ::= a-b | A-B\na-b ::= \"x\"\nA-B ::= \"y\"", &["x", "y"], &["z"]),
        ("root ::= \"a\"? (\n  \"b\" # or\n  | [c-e\\]-]\n)*", &["", "a", "abbc", "a]-"], &["aa", "f"]),
        ("root ::= \"\" | \"no\" | (\"x\"){2,}", &["", "no", "xxx"], &["x", "n"]),
    ];
    for (grammar, good, bad) in table {
        for text in good {
            assert!(takes(grammar, text), "{grammar}: {text:?}");
        }
        for text in bad {
            assert!(!takes(grammar, text), "{grammar}: {text:?}");
        }
    }
}

#[test]
fn mistakes_are_told_with_their_line() {
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(100), ")".repeat(100));
    for (grammar, words) in [
        ("root ::= a", "`a`, which it does not define"),
        ("a ::= \"a\"", "no rule `root`"),
        ("root ::= \"a\"\nroot ::= \"b\"", "twice, the second time in line 2"),
        ("root ::= \"a\"\n\nb = c", "line 3: `::=` is expected"),
        ("root ::= (\"a\"", "`)` is missing"),
        ("root ::= \"a", "middle of a text"),
        ("root ::= [z-a]", "before it begins"),
        ("root ::= []", "empty"),
        ("root ::= \"\\q\"", "an escape is"),
        ("root ::= \"\\uD800\"", "no character"),
        ("root ::= \"a\"{5,2}", "repetition"),
        ("root ::= \"a\"{99999}", "repetition"),
        ("root ::= <think>", "tokens cannot be named"),
        ("root ::= \"a\" ;", "the end of the rule"),
        (&deep, "nested too deeply"),
        (&"x".repeat(70_000), "bytes"),
    ] {
        let message = rewrite(grammar).map(|_| ()).unwrap_err();
        assert!(message.contains(words), "{message}");
    }
}
