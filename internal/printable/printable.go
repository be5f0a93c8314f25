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
