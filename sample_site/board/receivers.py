from django.contrib.auth import get_user_model
from django.db.models.signals import m2m_changed
from django.dispatch import receiver

from channels_websocket_utils.topics import publish_many

from .topics import RightsTopic

User = get_user_model()


@receiver(m2m_changed, sender=User.user_permissions.through)
@receiver(m2m_changed, sender=User.groups.through)
def publish_rights(instance, action, reverse, pk_set, **kwargs):
    """Publish that the rights of users have changed. Their pages ask what they may see now."""
    if action in ("post_add", "post_remove", "post_clear"):
        users = pk_set or () if reverse else [instance.pk]
        publish_many([(RightsTopic(pk=user), {}) for user in users])
