package main

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// leastWords is the number of words from which on a string is taken for text, wherever it stands.
const leastWords = 4

// script matches the begin of a shell script.
var script = regexp.MustCompile(`^\s*(?:#!|set -)`)

// goPassages returns the comments of a Go file. Of a file that is no test it returns strings too: messages and helps.
func goPassages(file string) ([]passage, error) {
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	isTest := strings.HasSuffix(file, "_test.go")
	var passages []passage
	for _, group := range parsed.Comments {
		if strings.HasPrefix(group.Text(), "Output:") && isTest {
			continue // the output of an example
		}
		passages = append(passages, passage{line: fset.Position(group.Pos()).Line, text: withoutIndented(group.Text())})
	}
	if !isTest {
		passages = append(passages, stringsOf(fset, parsed)...)
	}
	return passages, nil
}

// stringsOf returns the messages of a file, and its other strings of leastWords or more. Parts that the source joins by "+"
// are read as a whole.
func stringsOf(fset *token.FileSet, file *ast.File) (passages []passage) {
	messages := messagesOf(file)
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec, *ast.Field:
			return false // a path, a type with the tags of its fields
		case ast.Expr:
			text, ok := textOf(n)
			if !ok {
				return true
			}
			if isMessage := messages[n]; isMessage || !script.MatchString(text) && len(strings.Fields(text)) >= leastWords {
				at := fset.Position(n.Pos()).Line
				passages = append(passages, passage{line: at, text: withoutIndented(text), message: isMessage})
			}
			return false
		}
		return true
	})
	return passages
}

// textOf returns the text of a string, or of several that are joined by "+". A part that is no literal reads as "x".
func textOf(e ast.Expr) (text string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		left, leftOK := textOf(e.X)
		right, rightOK := textOf(e.Y)
		if e.Op != token.ADD || !leftOK && !rightOK {
			return "", false
		}
		return cmp.Or(left, "x") + cmp.Or(right, "x"), true
	}
	return "", false
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
