// Package printable makes names that others have given safe to print.
package printable

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Path makes a path safe to print: on one line, and without bytes that a terminal would act on. Most
// paths stay as they are. Others are quoted as a Go string, or as JSON if they are UTF-8: \n, \", \x1b.
func Path(path string) string {
	if utf8.ValidString(path) && !strings.ContainsFunc(path, func(r rune) bool {
		return r == '"' || r == '\\' || r != ' ' && !unicode.IsPrint(r)
	}) {
		return path
	}
	return strconv.Quote(path)
}

// Line makes a line of text safe to print, without quotes around it: tabs and printable characters stay as they are, and others
// become escapes of Go, such as \x1b. So do characters that are not seen, or that change the direction of text.
func Line(line string) string {
	bad := func(r rune) bool { return r != '\t' && r != ' ' && !unicode.IsPrint(r) }
	if utf8.ValidString(line) && !strings.ContainsFunc(line, bad) {
		return line
	}
	var b strings.Builder
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRuneInString(line[i:])
		piece := line[i : i+n]
		if r == utf8.RuneError && n == 1 || bad(r) {
			quoted := strconv.Quote(piece)
			piece = quoted[1 : len(quoted)-1]
		}
		b.WriteString(piece)
		i += n
	}
	return b.String()
}
