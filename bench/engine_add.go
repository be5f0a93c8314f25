package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	barsTitle = "\n### Through containerd, against the bar\n"
	barsHead  = "| image | operation | bar | measured | of the floor | |\n|---|---|---|---|---|---|\n"
)

// addTo writes an earlier report with the images of this one, which replace those of the same title.
func (r *engineReport) addTo(earlier string, w io.Writer) error {
	sections, bars, ok := strings.Cut(earlier, barsTitle)
	about, rows, headed := strings.Cut(bars, barsHead)
	if !ok || !headed {
		return errors.New("the document has no report through containerd of this form to add to: measure all images")
	}
	rows = strings.TrimRight(rows, "\n") + "\n"
	var added, addedRows strings.Builder
	for _, result := range r.results {
		sections = withoutSection(sections, upperFirst(result.title))
		rows = withoutRows(rows, result.title)
		r.writeSection(&added, result, fmt.Sprintf("Measured on %s, of revision %s. ", r.date, r.revision))
		r.writeBarRows(&addedRows, result)
	}
	_, err := fmt.Fprint(w, strings.TrimRight(sections, "\n"), "\n", added.String(), barsTitle, about, barsHead, rows, addedRows.String())
	return err
}

// withoutSection cuts a section out, up to the next one or the end.
func withoutSection(text, title string) string {
	before, section, ok := strings.Cut(text, "\n### "+title+"\n")
	if !ok {
		return text
	}
	_, after, more := strings.Cut(section, "\n### ")
	if !more {
		return before
	}
	return before + "\n### " + after
}

// withoutRows cuts the rows of an image out of a table.
func withoutRows(table, image string) string {
	var kept strings.Builder
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| "+image+" |") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
