package main

import (
	"go/ast"
	"regexp"
	"unicode"
	"unicode/utf8"
)

// maker matches the functions whose first string is the message of an error or of a log line.
var maker = regexp.MustCompile(`^(?:fmt\.Errorf|errors\.New|status\.Errorf?|fault\.(?:New|Said|Wrap|WrapWith)|` +
	`.*\.(?:Debug|Info|Warn|Error|Log)(?:Context|Attrs)?)$`)

// messagesOf returns the strings of a file that are the message of an error or of a log line.
func messagesOf(file *ast.File) map[ast.Expr]bool {
	messages := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || !maker.MatchString(nameOf(call.Fun)) || nameOf(call.Fun) == "http.Error" { // which writes an answer
			return true
		}
		for _, arg := range call.Args {
			if _, ok := textOf(arg); ok {
				messages[arg] = true
				break
			}
		}
		return true
	})
	return messages
}

// nameOf returns the name of a function with that of its package. The receiver of a method reads as "x" unless it is a name.
func nameOf(fun ast.Expr) string {
	selector, ok := fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if receiver, ok := selector.X.(*ast.Ident); ok {
		return receiver.Name + "." + selector.Sel.Name
	}
	return "x." + selector.Sel.Name
}

var (
	sentenceInside = regexp.MustCompile(`[.!?]\s+[A-Z]`)
	sentenceMark   = regexp.MustCompile(`[.!]\s*$`)
)

// isSentence reports whether a message has the marks of a sentence. Its first letter may be large in a name such as API,
// and in the names of names.
func isSentence(text string) bool {
	return sentenceMark.MatchString(text) || sentenceInside.MatchString(text) || beginsLarge(text)
}

// names are words that begin with a large letter inside a clause too.
var names = map[string]bool{"Cowshed": true, "Docker": true, "Debian": true, "Linux": true, "Go": true, "Kubernetes": true}

var firstWord = regexp.MustCompile(`^[\pL]+`)

func beginsLarge(text string) bool {
	word := firstWord.FindString(text)
	first, size := utf8.DecodeRuneInString(word)
	second, _ := utf8.DecodeRuneInString(word[min(size, len(word)):])
	return unicode.IsUpper(first) && unicode.IsLower(second) && !names[word]
}
