// Package doclinks finds references between the documents of a tree that lead nowhere.
package doclinks

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	heading = regexp.MustCompile(`^#{1,6} +(.*)$`)
	fence   = regexp.MustCompile("^ *(```|~~~)")
	inCode  = regexp.MustCompile("`[^`]*`")
	// path is a document as comments, scripts and configurations name it.
	path = regexp.MustCompile(`\bdocs/[A-Za-z0-9._/-]+\.(?:md|svg)\b`)
)

// Dead lists the references of the tree at root that lead nowhere, as "file:line: target". These are relative links and
// anchors of Markdown files, and paths below docs/ in any text file.
func Dead(root string) ([]string, error) {
	c := checker{root: root, anchors: make(map[string]map[string]bool)}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", ".cache", "bin", "dist", "testdata"}, entry.Name()):
			return filepath.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		return c.file(file)
	})
	return c.dead, err
}

type checker struct {
	root    string
	anchors map[string]map[string]bool // by file
	dead    []string
}

func (c *checker) file(file string) error {
	text, err := os.ReadFile(file)
	if err != nil || bytes.IndexByte(text, 0) >= 0 {
		return err
	}
	isDocument := filepath.Ext(file) == ".md"
	code := false
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		for _, target := range path.FindAllString(line, -1) {
			c.check(file, number, target, filepath.Join(c.root, target), "")
		}
		if !isDocument {
			continue
		}
		if fence.MatchString(line) {
			code = !code
		}
		if code {
			continue
		}
		for _, match := range link.FindAllStringSubmatch(inCode.ReplaceAllString(line, "code"), -1) {
			c.link(file, number, match[1])
		}
	}
	return nil
}

// link checks a link of a Markdown file. Links to other hosts are not checked.
func (c *checker) link(file string, number int, target string) {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return
	}
	name, anchor, _ := strings.Cut(target, "#")
	to := file
	if name != "" {
		to = filepath.Join(filepath.Dir(file), name)
	}
	c.check(file, number, target, to, anchor)
}

// check reports the target if the file, or the anchor in it, does not exist.
func (c *checker) check(file string, number int, target, to, anchor string) {
	_, err := os.Stat(to)
	if err == nil && (anchor == "" || c.anchorsOf(to)[anchor]) {
		return
	}
	if relative, err := filepath.Rel(c.root, file); err == nil {
		file = relative
	}
	c.dead = append(c.dead, fmt.Sprintf("%s:%d: %s", file, number, target))
}

// anchorsOf returns the anchors that a Markdown file's headings have on GitHub.
func (c *checker) anchorsOf(file string) map[string]bool {
	if anchors, ok := c.anchors[file]; ok {
		return anchors
	}
	anchors := make(map[string]bool)
	c.anchors[file] = anchors
	text, err := os.ReadFile(file)
	if err != nil {
		return anchors
	}
	code := false
	for line := range strings.SplitSeq(string(text), "\n") {
		if fence.MatchString(line) {
			code = !code
		}
		match := heading.FindStringSubmatch(line)
		if code || match == nil {
			continue
		}
		anchor := Anchor(match[1])
		for n, unique := 1, anchor; ; n++ {
			if !anchors[unique] {
				anchors[unique] = true
				break
			}
			unique = fmt.Sprintf("%s-%d", anchor, n)
		}
	}
	return anchors
}

// Anchor returns the anchor of a heading: letters, digits, hyphens and underscores in lower case, hyphens for spaces.
func Anchor(text string) string {
	text = link.ReplaceAllString(strings.ReplaceAll(text, "[", ""), "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), slices.Contains([]rune{'-', '_'}, r):
			return unicode.ToLower(r)
		}
		return -1
	}, text)
}
