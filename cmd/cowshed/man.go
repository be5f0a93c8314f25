package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manSection is the section of the manual for commands of administrators.
const manSection = "8"

// newManCommand writes the manual, for make install and packages. It takes no library: those that there are read help
// texts as Markdown, which changes them, and would be part of the program.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write a page of the manual for each command",
		Long:   "Writes a page of the manual for each command to DIR, which must exist. Their date is that of SOURCE_DATE_EPOCH, or of the commit.",
		Hidden: true,
		Args:   usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := manDate()
			if err != nil {
				return err
			}
			return writeManual(cmd.Root(), args[0], date)
		},
	}
}

// manDate is the date of SOURCE_DATE_EPOCH, or else of the commit; "" if both are unknown.
func manDate() (string, error) {
	epoch, err := sourceDateEpoch()
	if err != nil {
		return "", err
	}
	if epoch != nil {
		return epoch.Format(time.DateOnly), nil
	}
	date, _, _ := strings.Cut(readVersion().Date, "T")
	return date, nil
}

// writeManual writes the page of a command, and of those below it, to dir.
func writeManual(cmd *cobra.Command, dir, date string) error {
	page := manPage(cmd, date)
	if err := os.WriteFile(filepath.Join(dir, manName(cmd)+"."+manSection), page, 0o644); err != nil {
		return err
	}
	for _, child := range manChildren(cmd) {
		if err := writeManual(child, dir, date); err != nil {
			return err
		}
	}
	return nil
}

// manName is the name of a command's page: cowshed-setup-docker.
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manChildren are the commands below cmd that have pages.
func manChildren(cmd *cobra.Command) []*cobra.Command {
	var children []*cobra.Command
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() && !child.IsAdditionalHelpTopicCommand() {
			children = append(children, child)
		}
	}
	return children
}

// manPage is the page of a command, in the language of man(7).
func manPage(cmd *cobra.Command, date string) []byte {
	var page roff
	name := manName(cmd)
	page.macro("TH", strings.ToUpper(name), manSection, date, "cowshed "+versionString(), "Cowshed")
	page.section("NAME")
	page.line(name + " - " + cmd.Short)
	page.section("SYNOPSIS")
	if cmd.Runnable() {
		page.preformatted(cmd.UseLine())
	}
	if children := manChildren(cmd); len(children) > 0 {
		page.preformatted(cmd.CommandPath() + " COMMAND")
	}
	page.section("DESCRIPTION")
	page.text(description(cmd))
	if children := manChildren(cmd); len(children) > 0 {
		page.section("COMMANDS")
		for _, child := range children {
			page.tag(fmt.Sprintf("%s(%s)", manName(child), manSection))
			page.line(child.Short)
		}
	}
	page.flags("OPTIONS", cmd.NonInheritedFlags())
	if cmd.HasParent() {
		page.flags("OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	}
	if cmd.HasExample() {
		page.section("EXAMPLES")
		page.preformatted(cmd.Example)
	}
	if cmd.HasParent() {
		page.section("SEE ALSO")
		page.line(fmt.Sprintf("%s(%s), and %s(%s) for the exit codes", manName(cmd.Parent()), manSection, manName(cmd.Root()), manSection))
		return page.Bytes()
	}
	page.section("EXIT STATUS")
	page.text(exitCodesHelp)
	return page.Bytes()
}

// description is the longest text that there is about a command.
func description(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

// roff writes the language of man(7).
type roff struct{ bytes.Buffer }

// roffEscapes make text stand for itself. A plain - is a hyphen, which cannot be pasted into a shell.
var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`)

// macro writes a request with its arguments.
func (r *roff) macro(name string, args ...string) {
	r.WriteString("." + name)
	for _, arg := range args {
		r.WriteString(` "` + strings.ReplaceAll(roffEscapes.Replace(arg), `"`, `\(dq`) + `"`)
	}
	r.WriteByte('\n')
}

// line writes a line of text.
func (r *roff) line(text string) {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		r.WriteString(`\&`)
	}
	r.WriteString(roffEscapes.Replace(text) + "\n")
}

func (r *roff) section(name string) { r.macro("SH", name) }

// tag begins an entry of a list.
func (r *roff) tag(name string) {
	r.macro("TP")
	r.macro("B", name)
}

// text writes paragraphs. Those that are indented are tables and the like, and stay as they are.
func (r *roff) text(text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			r.macro("PP")
		}
		if strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "\n ") {
			r.preformatted(paragraph)
			continue
		}
		for line := range strings.Lines(paragraph) {
			r.line(strings.TrimSpace(line))
		}
	}
}

// preformatted writes lines as they are.
func (r *roff) preformatted(text string) {
	r.macro("nf")
	for line := range strings.Lines(text) {
		r.line(strings.TrimRight(line, "\n"))
	}
	r.macro("fi")
}

// flags writes a section of the flags that are not hidden.
func (r *roff) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	r.section(title)
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden || flag.Deprecated != "" {
			return
		}
		value, usage := pflag.UnquoteUsage(flag)
		name := "--" + flag.Name
		if flag.Shorthand != "" {
			name = "-" + flag.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + value
		}
		r.tag(name)
		switch flag.DefValue {
		case "", "0", "0s", "[]", "false":
		default:
			usage += " (default " + flag.DefValue + ")"
		}
		r.line(usage)
	})
}
