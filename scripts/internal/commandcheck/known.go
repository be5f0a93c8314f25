package main

import (
	_ "embed"
	"fmt"
	"path"
	"strings"
)

//go:embed known.txt
var knownText string

// known are the commands that deps.sh need not bring, and the programs whose names only a run tells.
type known struct{ lines []*knownLine }

type knownLine struct {
	text    string
	command string // or, in backquotes, an expression of Go, or * for all
	files   string // a pattern of path.Match, with ** for any files
	used    bool
}

// parseKnown reads lines "COMMAND FILES REASON". # starts a comment.
func parseKnown(text string) (*known, error) {
	k := &known{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return nil, fmt.Errorf("known.txt: %q lacks a reason", line)
		}
		k.lines = append(k.lines, &knownLine{text: line, command: fields[0], files: fields[1]})
	}
	return k, nil
}

// covers says whether a use is known.
func (k *known) covers(u use) bool {
	name := u.command
	if name == "" {
		name = "`" + strings.ReplaceAll(u.expr, " ", "") + "`"
	}
	covered := false
	for _, l := range k.lines {
		if (l.command == name || l.command == "*") && matches(l.files, u.file) {
			l.used, covered = true, true
		}
	}
	return covered
}

func matches(pattern, file string) bool {
	if dir, ok := strings.CutSuffix(pattern, "**"); ok {
		return strings.HasPrefix(file, dir)
	}
	ok, _ := path.Match(pattern, file)
	return ok
}

// unused returns the lines that covered nothing.
func (k *known) unused() []string {
	var lines []string
	for _, l := range k.lines {
		if !l.used {
			lines = append(lines, l.text)
		}
	}
	return lines
}
