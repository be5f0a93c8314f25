package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

type receiveFlags struct {
	parent string
	limit  bool
	json   bool
}

// receivedInfo is a layer in the output of receive --json.
type receivedInfo struct {
	live.Received
	SentAs string            `json:"sentAs,omitempty"`
	Limit  uint64            `json:"limit,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Image  string            `json:"image,omitempty"`
}

func newReceiveCommand(a *app) *cobra.Command {
	f := receiveFlags{}
	cmd := &cobra.Command{
		Use:   "receive [NAME]",
		Short: "Make a layer of a stream",
		Long: `Makes a sealed layer of a stream of cowshed send, which it reads from standard input, and prints the layer's name.
Without NAME that is the name in the stream. The layer gets its name only after the stream has come to its end, and
its digest is right. Of a stream that is cut off or damaged, whole parents stay, and nothing else.

A stream with the changes alone needs the layer on which it builds. That is found by its name in the stream, or named
with --parent. It has to be the very layer that was sent, or a layer received from the same.

Parents in the stream that are here already are passed over. Another layer with the name of a parent is an error.
Layers of images are made under the name image- and the first 12 digits of theirs.

Streams of btrfs send and zfs send are taken too. They need NAME and, if they are incremental, --parent.

Only a stream from somebody you trust makes a layer whose programs you can trust.`,
		Example: `  ssh host cowshed send web --with-parents | cowshed receive
  cowshed receive tuesday --parent monday < web.stream`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if isTerminal(cmd.InOrStdin()) {
				return usagef("a terminal cannot be the source of a stream: use < FILE, or a pipe")
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return a.with(cmd.Context(), func(s *store) error { return s.receive(cmd, name, f) })
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.parent, "parent", "p", "", "`LAYER` on which the stream builds")
	flags.BoolVar(&f.limit, "limit", false, "give the layer the limit that the stream says; on btrfs this can turn quotas on")
	addJSON(cmd, &f.json)
	must(cmd.RegisterFlagCompletionFunc("parent", completeLayers(a, -1, true)))
	return cmd
}

func (s *store) receive(cmd *cobra.Command, name string, f receiveFlags) error {
	opts := live.ReceiveOptions{Name: name, Limit: f.limit, ParentNames: parentNames, CheckName: layerstore.CheckNewLayer}
	if name != "" {
		if err := layerstore.CheckNewLayer(name); err != nil {
			return err
		}
	}
	if f.parent != "" {
		parent, err := s.Layer(cmd.Context(), f.parent)
		if err != nil {
			return fmt.Errorf("--parent: %w", err)
		}
		opts.Parent = parent.Name
	}
	bars := s.progress(cmd)
	defer bars.wait()
	opts.Progress = bars.ofLayer
	received, err := s.Live.Receive(cmd.Context(), standardInput(cmd.Context(), cmd.InOrStdin()), opts)
	if err != nil {
		return err
	}
	if f.json {
		infos := make([]receivedInfo, 0, len(received))
		for _, r := range received {
			infos = append(infos, receivedInfo{r, r.Header.Name, r.Header.Limit.Bytes, r.Header.Labels, r.Header.Image.Name})
		}
		return printJSON(cmd, infos)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), received[len(received)-1].Name)
	return err
}

// parentNames are the names that a parent in a stream may have here. The name of an image's layer says its content, which a
// stream does not prove.
func parentNames(name string) []string {
	if image.IsLayerName(name) || image.IsPartial(name) {
		return []string{name, "image-" + name[:12]}
	}
	return []string{name}
}
