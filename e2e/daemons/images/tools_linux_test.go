package images

import "strings"

// tool is a program that images go to from Cowshed, and come back from. Its scripts are for a shell, with these
// variables:
//
//   - FROM is the path that an image is read from. In a registry, it is read by its names.
//   - NAMES are the names of the image, NAME is the first. TAGS and TAG are their tags, REPOSITORY is the part
//     before these.
//   - STORE is a path that is not there yet, for a tool that keeps no images itself.
//   - TO is the path or reference that an image is written to, and ID its digest.
type tool struct {
	name string
	// load has a script for each format that the tool reads.
	load map[format]string
	// show prints pairs of words: "id" and the digest of the loaded image, "layer" and a diff ID, and "name" and a
	// name.
	show string
	// target says that the digest is that of the manifest or index, and not that of the config.
	target bool
	// save has a script for each format that the tool writes.
	save map[format]string
	// clear removes all images.
	clear string
	// keepsNames are the formats that the tool writes all names into, and not only the first.
	keepsNames []format
	// keepsPlatforms are the formats that the tool writes all platforms into, and not only this machine's.
	keepsPlatforms []format
	// unable says why the tool does not take an image, or not write it: it must fail. The keys are "load FORMAT CASE" and
	// "save FORMAT CASE", where * stands for every format or case.
	unable map[string]string
	// renames says why the tool gives an image another name. The keys are the same.
	renames map[string]string
}

var tools = []tool{
	{
		name: "skopeo",
		load: map[format]string{
			ociDir: `skopeo copy --all "oci:$FROM${TAG:+:$TAG}" "oci:$STORE:stored"
for tag in $TAGS; do skopeo inspect --raw "oci:$FROM:$tag" >/dev/null; echo "$REPOSITORY:$tag"; done >"$STORE/names"`,
			ociArchive: `skopeo copy --all "oci-archive:$FROM${TAG:+:$TAG}" "oci:$STORE:stored"
for tag in $TAGS; do skopeo inspect --raw "oci-archive:$FROM:$tag" >/dev/null; echo "$REPOSITORY:$tag"; done >"$STORE/names"`,
			dockerArchive: `skopeo copy --all "docker-archive:$FROM${NAME:+:$NAME}" "oci:$STORE:stored"
skopeo list-tags "docker-archive:$FROM" | sed -n 's/^        "\([^@]*\)".*/\1/p' >"$STORE/names"`,
			registry: `for name in $NAMES; do skopeo copy --quiet --all --src-tls-verify=false "docker://$name" "oci:$STORE:stored"; echo "$name"; done >"$STORE.names"
mv "$STORE.names" "$STORE/names"`,
		},
		show: `echo "id sha256:$(skopeo inspect --config --raw "oci:$STORE:stored" | sha256sum | cut -d ' ' -f 1)"
skopeo inspect --config --format '{{range .RootFS.DiffIDs}}layer {{.}} {{end}}' "oci:$STORE:stored"
sed 's/^/name /' "$STORE/names"`,
		save: map[format]string{
			ociDir:        `for name in ${NAMES:-""}; do skopeo copy --all "oci:$STORE:stored" "oci:$TO:$name"; done`,
			ociArchive:    `skopeo copy --all "oci:$STORE:stored" "oci-archive:$TO${NAME:+:$NAME}"`,
			dockerArchive: `skopeo copy $(for name in $NAMES; do echo "--additional-tag $name"; done) "oci:$STORE:stored" "docker-archive:$TO"`,
			registry:      `skopeo copy --all --dest-tls-verify=false "oci:$STORE:stored" "docker://$TO"`,
		},
		keepsNames:     []format{ociDir, dockerArchive},
		keepsPlatforms: []format{ociDir, ociArchive, registry},
		clear:          `rm -rf "$STORE"`,
		unable: map[string]string{
			"save docker-archive zstd":         noZstd,
			"save docker-archive zstd-chunked": noZstd,
		},
	},
	{
		name: "buildah",
		load: map[format]string{
			ociDir:        `buildah pull "oci:$FROM${TAG:+:$TAG}"`,
			ociArchive:    `buildah pull "oci-archive:$FROM"`,
			dockerArchive: `buildah pull "docker-archive:$FROM"`,
			registry:      `for name in $NAMES; do buildah pull --tls-verify=false "docker://$name"; done`,
		},
		show: `id=$(buildah images --quiet --no-trunc)
echo "id $id"
buildah inspect --type image --format '{{range .OCIv1.RootFS.DiffIDs}}layer {{.}} {{end}}' "$id"
buildah images --noheading --format 'name {{.Name}}:{{.Tag}}'`,
		save: map[format]string{
			ociDir:        `buildah push "$ID" "oci:$TO${NAME:+:$NAME}"`,
			ociArchive:    `buildah push "$ID" "oci-archive:$TO${NAME:+:$NAME}"`,
			dockerArchive: `buildah push "$ID" "docker-archive:$TO${NAME:+:$NAME}"`,
			registry:      `buildah push --tls-verify=false "$ID" "docker://$TO"`,
		},
		clear:   `buildah rmi --all --force`,
		unable:  containersUnable,
		renames: map[string]string{"load oci *": afterDirectory},
	},
	{
		name: "podman",
		load: map[format]string{
			ociDir:        `id=$(podman pull --quiet "oci:$FROM${TAG:+:$TAG}"); for name in $NAMES; do podman tag "$id" "$name"; done`,
			ociArchive:    `podman load --input "$FROM"`,
			dockerArchive: `podman load --input "$FROM"`,
			registry:      `for name in $NAMES; do podman pull --tls-verify=false "docker://$name"; done`,
		},
		show: `id=$(podman images --quiet --no-trunc)
echo "id $id"
podman image inspect --format '{{range .RootFS.Layers}}layer {{.}} {{end}}' "$id"
podman images --noheading --format 'name {{.Repository}}:{{.Tag}}'`,
		save: map[format]string{
			ociDir:        `podman save --format oci-dir --output "$TO" "${NAME:-$ID}"`,
			ociArchive:    `podman save --format oci-archive --output "$TO" "${NAME:-$ID}"`,
			dockerArchive: `podman save --format docker-archive --output "$TO" ${NAMES:-$ID}`,
			registry:      `podman push --tls-verify=false "$ID" "docker://$TO"`,
		},
		keepsNames: []format{dockerArchive},
		clear:      `podman rmi --all --force`,
		unable:     containersUnable,
		renames:    map[string]string{"load oci *": afterDirectory},
	},
	{
		name: "umoci",
		load: map[format]string{
			ociDir: `cp -r "$FROM" "$STORE"; umoci unpack --image "$STORE:$TAG" "$STORE/bundle"`,
		},
		show: `umoci ls --layout "$STORE" | sed "s|^|name $REPOSITORY:|"
umoci stat --image "$STORE:$TAG" --json | grep -o '"diff_id":"[^"]*"' | sed 's/.*:"\(.*\)"/layer \1/'`,
		save: map[format]string{
			ociDir: `cp -r "$STORE" "$TO"; rm -rf "$TO/bundle"
for tag in $(umoci ls --layout "$TO"); do
  umoci tag --image "$TO:$tag" other; umoci rm --image "$TO:$tag"
  umoci tag --image "$TO:other" "$tag"; umoci rm --image "$TO:other"
done
umoci gc --layout "$TO"`,
		},
		keepsNames: []format{ociDir},
		clear:      `rm -rf "$STORE"`,
		unable: map[string]string{
			"load oci zstd":         umociNoZstd,
			"load oci zstd-chunked": umociNoZstd,
			"load oci untagged":     "it finds images by their tags",
			"load oci attested":     umociNoIndex,
			"load oci platforms":    umociNoIndex,
		},
	},
	docker20(),
	dockerCommand("docker-29", true),
	{
		name:   "ctr",
		target: true,
		load: map[format]string{
			ociArchive:    `ctr images import --all-platforms $(test -n "$NAME" || echo --digests) "$FROM"`,
			dockerArchive: `ctr images import --all-platforms $(test -n "$NAME" || echo --digests) "$FROM"`,
			registry:      `for name in $NAMES; do ctr images pull --all-platforms --plain-http "$name"; done`,
		},
		show: `ctr images ls | awk 'NR > 1 { print "name " $1; print "id " $3 }'`,
		// Without --local, ctr may end before the file is complete: NewImageExportStream of containerd 2.4 copies in the background.
		save: map[format]string{
			ociArchive:    `ctr images export --local --all-platforms "$TO" ${NAMES:-$(ctr images ls -q)}`,
			dockerArchive: `ctr images export --local --all-platforms "$TO" ${NAMES:-$(ctr images ls -q)}`,
			registry:      `ctr images push --plain-http "$TO" "$(ctr images ls -q | head -n 1)"`,
		},
		keepsNames:     []format{ociArchive},
		keepsPlatforms: formats,
		clear:          `for name in $(ctr images ls -q); do ctr images rm --sync "$name"; done`,
	},
	dockerCommand("nerdctl", true, "--all-platforms"),
}

// Messages of tools.
const (
	noZstd         = "Docker's manifests have no zstd"
	afterDirectory = "it calls what is in a directory after that"
	umociNoZstd    = "it does not read zstd"
	zstdSince23    = "Docker Engine reads zstd since 23.0"
	umociNoIndex   = "it does not choose from an index"
)

// containersUnable lists functions that buildah and podman lack.
var containersUnable = map[string]string{
	"load oci-archive tags":            "it takes an archive with one entry only",
	"save docker-archive zstd":         noZstd,
	"save docker-archive zstd-chunked": noZstd,
}

// docker20 is the command of an engine without the containerd image store.
func docker20() tool {
	docker := dockerCommand("docker-20.10", false)
	delete(docker.load, ociArchive)
	delete(docker.save, ociArchive)
	docker.unable = map[string]string{"load * zstd": zstdSince23, "load * zstd-chunked": zstdSince23}
	return docker
}

// dockerCommand is a tool with the commands of docker. flags are for those that load and save.
func dockerCommand(name string, target bool, flags ...string) tool {
	all := strings.Join(flags, " ")
	save := `docker save ` + all + ` --output "$TO" ${NAMES:-$ID}`
	var platforms []format
	if target {
		platforms = formats
	}
	return tool{
		name:   name,
		target: target,
		load: map[format]string{
			ociArchive:    `docker load ` + all + ` --input "$FROM"`,
			dockerArchive: `docker load ` + all + ` --input "$FROM"`,
			registry:      `for name in $NAMES; do docker pull ` + all + ` "$name"; done`,
		},
		show: `id=$(docker images --all --quiet --no-trunc | sort -u)
echo "id $id"
docker image inspect --format '{{range .RootFS.Layers}}layer {{.}} {{end}}' "$id"
docker images --all --format 'name {{.Repository}}:{{.Tag}}'`,
		save: map[format]string{
			ociArchive: save, dockerArchive: save,
			registry: `docker tag "$ID" "$TO"; docker push ` + all + ` "$TO"`,
		},
		keepsNames:     []format{ociArchive, dockerArchive},
		keepsPlatforms: platforms,
		clear:          `for id in $(docker images --all --quiet --no-trunc | sort -u); do docker rmi --force "$id"; done`,
	}
}
