package main

import (
	"fmt"
	"regexp"
	"strings"
)

// mostWords is the limit for a sentence, or a part of it that ends in a colon or semicolon.
const mostWords = 25

// rules are patterns that no sentence may match. Code and quotations do not count.
var rules = []struct {
	name    string
	pattern *regexp.Regexp
}{
	{`bare "what": name the thing`, regexp.MustCompile(`(?i)\bwhat\b(?:$|[^a-z ]| (?:$|[^t ]|t[^o]))`)},
	{`bare "who": name the actor`, regexp.MustCompile(`(?i)(?:^|[,;:(] |\b(?:of|by|to|for|from|with|tell|tells|know|knows|see|sees|say|says|on|in|or|and|but|than|as|is|are) )who\b`)},
	{`"whoever": name the actor`, regexp.MustCompile(`(?i)\bwhoever\b`)},
	{`"that there is": name the thing`, regexp.MustCompile(`(?i)\bthat there (?:is|are|was|were)(?: not\b|[.,;:)]|$)`)},
	{`"there is not": say "there is no …" or name the thing`, regexp.MustCompile(`(?i)\bthere (?:is|are|was|were) not(?:$|[^ a-z]| (?:$|[^ae]))`)},
	{`"one that": name the thing`, regexp.MustCompile(`(?i)\bones? (?:that|which|who)\b`)},
	{`"but for": say "except"`, regexp.MustCompile(`(?i)\bbut for\b`)},
	{`bare "which": name the thing`, regexp.MustCompile(`(?i)\b(?:say|says|said|tell|tells|know|knows) which[.,;)]`)},
	{`"that which", "those who": name it`, regexp.MustCompile(`(?i)\bthat which\b|\bthose who\b`)},
	{`document errors as "Returns ErrX if …"`, regexp.MustCompile(`(?:^|[ (])(?:[a-z]+\.)?(?:Err[A-Z]\w+|E[A-Z]{4,}):$`)},
	{`bare subject: name the thing`, regexp.MustCompile(`(?i)^(?:which|none|one) (?:is|are|was|has|have|can|cannot|may|must|does|do)\b`)},
}

// passage is text that belongs together: a comment, a paragraph, a cell of a table.
type passage struct {
	line  int
	text  string
	table bool // a cell, which may be longer than a sentence
	// message says that the text is an error's or a log line's: a clause that others are put before and after.
	message bool
}

// fault is a sentence that breaks a rule.
type fault struct {
	line           int
	rule, sentence string
}

// check checks the sentences of passages.
func check(passages []passage) (faults []fault) {
	for _, p := range passages {
		if p.message && isSentence(p.text) {
			faults = append(faults, fault{p.line, "a message is a clause: no large first letter, no full stop", p.text})
		}
		for _, sentence := range sentences(p.text) {
			if strings.HasPrefix(sentence, "#") {
				continue // a heading may be a question
			}
			plain := withoutCode(sentence)
			for _, rule := range rules {
				if rule.pattern.MatchString(plain) && !strings.HasSuffix(plain, "?") {
					faults = append(faults, fault{p.line, rule.name, sentence})
				}
			}
			if n := countWords(plain); n > mostWords && !p.table {
				faults = append(faults, fault{p.line, fmt.Sprintf("%d words: at most %d", n, mostWords), sentence})
			}
		}
	}
	return faults
}

var (
	paragraphEnd = regexp.MustCompile(`\n\s*\n|\n(\s*(?:[-*] |\d+\. |#))`)
	listMark     = regexp.MustCompile(`^(?:[-*]|\d+\.) `)
	sentenceEnd  = regexp.MustCompile(`([.?!;:][")*_]?)\s+`)
	code         = regexp.MustCompile("`[^`]*`|\"[^\"]*\"|\\]\\([^)]*\\)|https?://\\S+")
	word         = regexp.MustCompile(`[A-Za-z0-9]`)
)

// sentences splits text into sentences, which end in a period, a question or exclamation mark, a colon or a semicolon.
func sentences(text string) (all []string) {
	for paragraph := range strings.SplitSeq(paragraphEnd.ReplaceAllString(text, "\x00$1"), "\x00") {
		paragraph = listMark.ReplaceAllString(strings.Join(strings.Fields(paragraph), " "), "")
		for sentence := range strings.SplitSeq(sentenceEnd.ReplaceAllString(paragraph, "$1\x00"), "\x00") {
			if sentence != "" {
				all = append(all, sentence)
			}
		}
	}
	return all
}

// withoutCode replaces code, quotations and the targets of links.
func withoutCode(sentence string) string { return code.ReplaceAllString(sentence, "x") }

func countWords(sentence string) (n int) {
	for field := range strings.FieldsSeq(sentence) {
		if word.MatchString(field) {
			n++
		}
	}
	return n
}
