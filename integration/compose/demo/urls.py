from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("rows", views.rows, name="rows"),
    path("send", views.send, name="send"),
    path("admin/", admin.site.urls),
]
