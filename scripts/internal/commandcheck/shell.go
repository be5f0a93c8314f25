package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// scriptUses finds the commands of shell scripts, of the Makefile and of .ci/run.
func scriptUses(tree string) ([]use, error) {
	out, err := exec.Command("git", "-C", tree, "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	var uses []use
	for file := range strings.Lines(string(out)) {
		file = strings.TrimSuffix(file, "\n")
		text, err := os.ReadFile(filepath.Join(tree, file))
		switch {
		case os.IsNotExist(err): // deleted, and not committed
			continue
		case err != nil:
			return nil, err
		case file == "Makefile":
			uses = append(uses, makefileUses(file, string(text))...)
		case strings.HasPrefix(string(text), "#!") && regexp.MustCompile(`^#!.*\b(ba)?sh\b`).Match(text):
			found, err := shellUses(file, 1, string(text))
			if err != nil {
				return nil, err
			}
			uses = append(uses, found...)
		}
	}
	return uses, nil
}

// makeExpansion is a variable or function of make in a recipe.
var makeExpansion = regexp.MustCompile(`\$\([^()]*(\([^()]*\)[^()]*)*\)`)

// makefileUses finds the commands of recipes. Text that make expands has no commands of its own there.
func makefileUses(file, text string) []use {
	var uses []use
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		recipe, ok := strings.CutPrefix(lines[i], "\t")
		if !ok {
			continue
		}
		at := i + 1
		for strings.HasSuffix(recipe, "\\") && i+1 < len(lines) {
			i++
			recipe += "\n" + strings.TrimPrefix(lines[i], "\t")
		}
		recipe = strings.TrimLeft(recipe, "@-+")
		recipe = strings.ReplaceAll(recipe, "$$", "\x00")
		recipe = makeExpansion.ReplaceAllString(recipe, "./expanded")
		recipe = regexp.MustCompile(`\$[@<^]`).ReplaceAllString(recipe, "./expanded")
		recipe = strings.ReplaceAll(recipe, "\x00", "$")
		found, err := shellUses(file, at, recipe)
		if err != nil {
			continue // make has to expand it to a script
		}
		uses = append(uses, found...)
	}
	return uses
}

// shellUses finds the commands of a script whose first line has the given number.
func shellUses(file string, first int, script string) ([]use, error) {
	parsed, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(script), file)
	if err != nil {
		return nil, err
	}
	functions := make(map[string]bool)
	syntax.Walk(parsed, func(node syntax.Node) bool {
		if f, ok := node.(*syntax.FuncDecl); ok {
			functions[f.Name.Value] = true
		}
		return true
	})
	var uses []use
	add := func(name string, at syntax.Pos) {
		if name == "" || strings.ContainsAny(name, "/=\\*?[") || functions[name] || isBuiltin(name) {
			return
		}
		uses = append(uses, use{command: name, file: file, line: first - 1 + int(at.Line())})
	}
	syntax.Walk(parsed, func(node syntax.Node) bool {
		call, ok := node.(*syntax.CallExpr)
		if !ok {
			return true
		}
		words := call.Args
		for len(words) > 0 {
			name := words[0].Lit()
			add(name, words[0].Pos())
			words = wrapped(name, words[1:], functions)
			if scripts := scriptsIn(name, words); scripts != nil {
				for _, s := range scripts {
					inner, err := shellUses(file, first-1+int(words[0].Pos().Line()), s)
					if err == nil {
						for _, u := range inner {
							if !functions[u.command] {
								uses = append(uses, u)
							}
						}
					}
				}
				return true
			}
		}
		return true
	})
	return uses, nil
}

// wrappers are commands, and functions of this tree's scripts, that run the command in their arguments, with the
// number of their own arguments before it.
var wrappers = map[string]int{
	"exec": 0, "command": 0, "env": 0, "nice": 0, "sudo": 0, "xargs": 0, "unshare": 0, "chroot": 1, "timeout": 1, "nohup": 0,
	"step": 1, "claim": 1, "quietly": 1, "seconds": 0, "time": 0, "judged": 0,
}

// valued are the options of wrappers that have their value in the next word.
var valued = map[string][]string{"env": {"-u", "-C"}, "nice": {"-n"}, "xargs": {"-n", "-I", "-P", "-d"}}

var shells = []string{"sh", "bash", "dash"}

// wrapped returns the words of the command that a wrapper runs, nil if name is none.
func wrapped(name string, words []*syntax.Word, functions map[string]bool) []*syntax.Word {
	if slices.Contains(shells, name) {
		return words
	}
	own, ok := wrappers[name]
	if !ok || isFunctionOfTree(name) && !functions[name] {
		return nil
	}
	for len(words) > 0 {
		word := words[0].Lit()
		switch {
		case word == "-v" && name == "command":
			return words[1:]
		case slices.Contains(valued[name], word) && len(words) > 1:
			words = words[2:]
		case strings.HasPrefix(word, "-"):
			words = words[1:]
		case name == "env" && strings.Contains(wordStart(words[0]), "="):
			words = words[1:]
		case own > 0:
			own--
			words = words[1:]
		default:
			return words
		}
	}
	return nil
}

func isFunctionOfTree(name string) bool {
	return slices.Contains([]string{"step", "claim", "quietly", "seconds", "judged"}, name)
}

// wordStart is the literal that a word starts with.
func wordStart(w *syntax.Word) string {
	if len(w.Parts) > 0 {
		if lit, ok := w.Parts[0].(*syntax.Lit); ok {
			return lit.Value
		}
	}
	return ""
}

// scriptsIn returns the script that a shell is given with -c.
func scriptsIn(name string, words []*syntax.Word) []string {
	if !slices.Contains(shells, name) {
		return nil
	}
	for i, w := range words {
		if option := w.Lit(); strings.HasPrefix(option, "-") && strings.HasSuffix(option, "c") && i+1 < len(words) {
			if script, ok := literal(words[i+1]); ok {
				return []string{script}
			}
		}
	}
	return []string{}
}

// literal is the text of a word that is one literal, quoted or not.
func literal(w *syntax.Word) (string, bool) {
	if len(w.Parts) != 1 {
		return "", false
	}
	switch p := w.Parts[0].(type) {
	case *syntax.Lit:
		return p.Value, true
	case *syntax.SglQuoted:
		return p.Value, true
	case *syntax.DblQuoted:
		if len(p.Parts) == 1 {
			if lit, ok := p.Parts[0].(*syntax.Lit); ok {
				return lit.Value, true
			}
		}
	}
	return "", false
}

// isBuiltin says whether bash has the command itself.
func isBuiltin(name string) bool {
	return slices.Contains(strings.Fields(`. : [ alias bg bind break builtin caller cd command compgen complete compopt
		continue declare dirs disown echo enable eval exec exit export false fc fg getopts hash help history jobs kill let
		local logout mapfile popd printf pushd pwd read readarray readonly return set shift shopt source suspend test times
		trap true type typeset ulimit umask unalias unset wait`), name)
}
