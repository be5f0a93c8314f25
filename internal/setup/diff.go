package setup

import (
	"bytes"
	"fmt"
	"strings"
)

// contextLines is how many lines stand around each change.
const contextLines = 3

// unifiedDiff is how a text becomes another, as patch(1) reads it; nil is a file that is not there. It is empty if
// nothing does.
func unifiedDiff(file string, before, after []byte) string {
	if bytes.Equal(before, after) && (before == nil) == (after == nil) {
		return ""
	}
	from, to := file, file
	if before == nil {
		from = "/dev/null"
	}
	if after == nil {
		to = "/dev/null"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", from, to)
	lines := compareLines(splitLines(before), splitLines(after))
	for start := 0; start < len(lines); {
		if lines[start].mark == ' ' {
			start++
			continue
		}
		begin, end := max(0, start-contextLines), start
		for i := start; i < len(lines) && i <= end+2*contextLines; i++ {
			if lines[i].mark != ' ' {
				end = i
			}
		}
		stop := min(len(lines), end+1+contextLines)
		writeHunk(&b, lines, begin, stop)
		start = stop
	}
	return b.String()
}

// diffLine is a line of one text or of both.
type diffLine struct {
	mark byte // ' ' in both, '-' in the first, '+' in the second
	text string
}

func splitLines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		return lines[:len(lines)-1]
	}
	return lines
}

// compareLines finds the longest common sequence of lines.
func compareLines(a, b []string) []diffLine {
	var head, tail []diffLine
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, diffLine{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append([]diffLine{{' ', a[len(a)-1]}}, tail...)
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	// common[i][j] is the length of the longest common sequence of a[i:] and b[j:].
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			head = append(head, diffLine{' ', a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			head = append(head, diffLine{'-', a[i]})
			i++
		default:
			head = append(head, diffLine{'+', b[j]})
			j++
		}
	}
	return append(head, tail...)
}

// writeHunk writes the lines from begin to stop with their numbers.
func writeHunk(b *strings.Builder, lines []diffLine, begin, stop int) {
	count := func(lines []diffLine, other byte) (n int) {
		for _, line := range lines {
			if line.mark != other {
				n++
			}
		}
		return n
	}
	span := func(other byte) string {
		start, length := count(lines[:begin], other), count(lines[begin:stop], other)
		if length > 0 {
			start++
		}
		if length == 1 {
			return fmt.Sprint(start)
		}
		return fmt.Sprintf("%d,%d", start, length)
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span('+'), span('-'))
	for _, line := range lines[begin:stop] {
		b.WriteByte(line.mark)
		b.WriteString(line.text)
		if !strings.HasSuffix(line.text, "\n") {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
}
