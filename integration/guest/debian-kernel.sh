# Sourced by qemu.sh: fetches the distribution's own kernel package and unpacks it; it is not installed.
# Sets $kernel (its folder), $version (as uname -r prints it) and $image.

# The package that the distribution's meta package stands for at present.
kernel_packages() {
  local meta image
  for meta in linux-image-cloud-amd64 linux-image-virtual; do    # Debian, Ubuntu
    image=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    [ -n "$image" ] || continue
    echo "$image"
    # Ubuntu keeps the modules apart, IPVS among the extra ones in some releases; Debian has them with the kernel.
    apt-cache --names-only search "^linux-modules(-extra)?-${image#linux-image-}\$" | awk '{ print $1 }'
    return
  done
}

fetch_kernel() {
  local fresh=$1 packages
  if [ -n "$fresh" ]; then apt-get -qq update >&2 || true; fi
  packages=$(kernel_packages)
  [ -n "$packages" ] || return 1
  echo "guest: fetching ${packages//$'\n'/, } (once; it is unpacked under ${cache#"$PWD"/}, not installed)" >&2
  # shellcheck disable=SC2086 # one word a package
  (cd "$cache/new" && apt-get -qq -o APT::Sandbox::User=root download $packages >&2)
}

unpack_kernel() {
  local package
  for package in "$cache"/new/*.deb; do dpkg -x "$package" "$cache/new"; done
  rm "$cache"/new/*.deb
  [ -d "$cache/new/lib/modules" ] || ln -s usr/lib "$cache/new/lib"    # newer releases keep them in /usr/lib
  depmod -b "$cache/new" "$(ls "$cache/new/lib/modules")"
}

# One run fetches while others wait; a fetch that was interrupted begins again.
find_kernel() {
  local cache=$target/guest
  kernel=$cache/kernel
  mkdir -p "$cache"
  exec 9> "$cache/lock"
  flock 9
  if [ ! -d "$kernel" ]; then
    rm -rf "$cache/new"
    mkdir "$cache/new"
    # The package lists may be older than the archive: then what they name is gone.
    fetch_kernel '' || fetch_kernel fresh || fail "cannot fetch a kernel package; are the package sources of apt in order?"
    unpack_kernel
    mv "$cache/new" "$kernel"
  fi
  exec 9>&-
  version=$(ls "$kernel/lib/modules")
  image=$kernel/boot/vmlinuz-$version
}
