package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// leastWords is the number of words from which on a string of a command is taken for text.
const leastWords = 4

// goPassages returns the comments of a Go file. Of a command's file it returns strings too, which are helps and messages.
func goPassages(file string) ([]passage, error) {
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var passages []passage
	for _, group := range parsed.Comments {
		if strings.HasPrefix(group.Text(), "Output:") && strings.HasSuffix(file, "_test.go") {
			continue // the output of an example
		}
		passages = append(passages, passage{line: fset.Position(group.Pos()).Line, text: withoutIndented(group.Text())})
	}
	if !strings.HasPrefix(filepath.ToSlash(file), "cmd/") || strings.HasSuffix(file, "_test.go") {
		return passages, nil
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		literal, ok := n.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(literal.Value)
		if err == nil && len(strings.Fields(text)) >= leastWords {
			passages = append(passages, passage{line: fset.Position(literal.Pos()).Line, text: withoutIndented(text)})
		}
		return true
	})
	return passages, nil
}

// withoutIndented empties the lines that begin with a space or tab, which are code or tables.
func withoutIndented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, " ") {
			lines[i] = ""
		}
	}
	return strings.Join(lines, "\n")
}

var fence = regexp.MustCompile("^\\s*(```|~~~)")

// markdownPassages returns the text of a Markdown file, paragraph by paragraph. Blocks of code do not count.
func markdownPassages(file string) ([]passage, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var passages []passage
	var paragraph []string
	begun, inCode := 0, false
	end := func() {
		if len(paragraph) > 0 {
			passages = append(passages, passage{line: begun, text: strings.Join(paragraph, "\n")})
			paragraph = nil
		}
	}
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		isFence := fence.MatchString(line)
		switch {
		case isFence:
			end()
			inCode = !inCode
		case inCode, strings.HasPrefix(line, "<!--"):
		case strings.TrimSpace(line) == "":
			end()
		case strings.HasPrefix(line, "|"):
			end()
			for cell := range strings.SplitSeq(strings.ReplaceAll(line, `\|`, ""), "|") {
				passages = append(passages, passage{line: number, text: strings.TrimSpace(cell), table: true})
			}
		default:
			if len(paragraph) == 0 {
				begun = number
			}
			paragraph = append(paragraph, line)
		}
	}
	end()
	return passages, nil
}
